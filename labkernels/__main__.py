"""`python -m labkernels ...` is `labkernels ...`."""
from labkernels.cli import app

if __name__ == "__main__":
    app(prog_name="labkernels")
