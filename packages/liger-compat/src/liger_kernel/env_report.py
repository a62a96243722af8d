"""python -m liger_kernel.env_report: the report of `liger env`, below the version followed here."""

from liger_core.env import environment, render

from . import __version__

__all__ = ["print_env_report"]


def print_env_report() -> None:
    """Print it."""
    print(f"liger_kernel {__version__}, by liger-compat")
    print(render(environment()))


if __name__ == "__main__":
    print_env_report()
