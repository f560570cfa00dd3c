from glob import glob

from setuptools import Extension, setup

# -g0: debug information would make the wheel six times larger. The rest of the build is declared in pyproject.toml.
parts = sorted(glob("cube_mesh/_fastpath/*.pxi"))
flags = ["-O2", "-g0"]
setup(
    ext_modules=[Extension("cube_mesh._fastpath", ["cube_mesh/_fastpath.pyx"], depends=parts, extra_compile_args=flags)]
)
