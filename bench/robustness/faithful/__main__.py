"""The command."""

from bench.robustness.faithful.campaign import main

if __name__ == "__main__":
    main()
