"""Commands: each module is one, run as `python -m icrm_lib.cli.<name>`; nothing imports them."""
