"""Stores secrets in the key-value store of Ray's control store (GCS).

An autoscaling policy gets the key of a secret as its argument, not the secret itself: Serve logs the arguments and shows them in
its status.
"""

from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put

_NAMESPACE = b"sophia"


def put(key: str, secret: str) -> None:
    """Store a secret for the processes of the cluster. Needs a connection to Ray."""
    _internal_kv_put(key, secret, overwrite=True, namespace=_NAMESPACE)


def get(key: str) -> str:
    """The secret under a key. Raises LookupError when there is none."""
    found: bytes | None = _internal_kv_get(key, namespace=_NAMESPACE)
    if found is None:
        raise LookupError(f"Ray's control store has no value for {key}. Deploy Sophia again.")
    return found.decode()
