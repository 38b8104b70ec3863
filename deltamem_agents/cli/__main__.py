"""``python -m deltamem_agents.cli``: the same as ``deltamem``."""

from .app import main

if __name__ == "__main__":
    main()
