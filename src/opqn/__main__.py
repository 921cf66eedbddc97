"""``python -m opqn`` is ``opqn``; so ``accelerate launch -m opqn train ...`` trains in several processes."""

from opqn.cli import main

if __name__ == "__main__":
    main()
