"""`python -m lorarlhf`, which launchers of several processes (torchrun, accelerate) call."""

from lorarlhf.cli.main import main

if __name__ == "__main__":
    main()
