"""Training on Lightning. Needs the extra ``tzn[train]``."""

try:
    import lightning.pytorch as _lightning  # noqa: F401
except ImportError as error:  # a plain install has no training libraries
    from tzn.errors import TznError

    raise TznError("training needs Lightning: pip install 'tzn[train]'") from error

from tzn.training.fit import train

__all__ = ["train"]
