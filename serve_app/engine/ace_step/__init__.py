"""The engine for ACE-Step 1.5, which uses the pipeline of diffusers."""
