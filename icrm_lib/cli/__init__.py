"""Commands: `run`, `plan`, `train`, `evidence`, each run as `python -m icrm_lib.cli.<name>`; the others serve `run`."""
