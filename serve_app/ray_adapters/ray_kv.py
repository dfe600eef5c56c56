"""Secrets that a policy's arguments must not hold: Serve writes those into its log and shows them in its status.

They lie in the key-value store of Ray's control service, under a name that may be shown.
"""

from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put

_NAMESPACE = b"sophia"


def put(name: str, secret: str) -> None:
    """Put a secret where the cluster's processes find it. Needs a connection to Ray."""
    _internal_kv_put(name, secret, overwrite=True, namespace=_NAMESPACE)


def get(name: str) -> str:
    """The secret kept under a name. Raises LookupError when there is none."""
    found: bytes | None = _internal_kv_get(name, namespace=_NAMESPACE)
    if found is None:
        raise LookupError(f"Ray's control service holds no {name}: deploy again")
    return found.decode()
