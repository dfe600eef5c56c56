"""ElevenLabs' music API, for its SDKs."""
