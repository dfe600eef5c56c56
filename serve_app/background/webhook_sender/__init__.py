"""Sends webhooks: HTTP requests that notify a client's server when its job has ended."""

from serve_app.background.webhook_sender.addresses import check_url, is_public, resolve
from serve_app.background.webhook_sender.attempt import WebhookForm
from serve_app.background.webhook_sender.sender import Sender
from serve_app.background.webhook_sender.signing import shown_secret, sign, signing_keys

__all__ = ["Sender", "WebhookForm", "check_url", "is_public", "resolve", "shown_secret", "sign", "signing_keys"]
