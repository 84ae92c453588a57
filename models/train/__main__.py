"""python -m models.train: see train.py."""

from models.train.train import main

if __name__ == "__main__":
    main()
