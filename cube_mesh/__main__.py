"""``python -m cube_mesh`` is ``cube-mesh``."""

from cube_mesh.cli import main

if __name__ == "__main__":
    main()
