"""`python -m denserl.cli.paper_scripts RECIPE ARGUMENTS`, as the scripts in examples/scripts call it."""

from denserl.cli.paper_scripts import main

if __name__ == "__main__":
    main()
