"""Installs the five root folders as the one import package `podracer`."""

import pathlib

import setuptools

HERE = pathlib.Path(__file__).parent
PARTS = ("anakin", "sebulba", "agents", "launch")

packages = setuptools.find_packages(include=["podracer", "podracer.*"])
for part in PARTS:
  packages += [
    f"podracer.{part}",
    *(f"podracer.{part}.{p}" for p in setuptools.find_packages(part)),
  ]

SUITES = {
  "navix": ["navix>=0.7.4"],
  "pgx": ["pgx>=2.6"],
  "brax": ["brax>=0.14"],
  "jumanji": ["jumanji>=1.1"],
  "craftax": ["craftax>=1.5"],
  "envpool": ["envpool>=1.2"],
  "gymnasium": ["gymnasium>=1.1"],
}
# What exports of expert data need, beside what recording and reading do.
EXPORTS = {
  "tfrecord": ["google-crc32c", "pillow"],
  "jat": ["pillow"],
  "minari": ["minari[hdf5]>=0.5.4", "pillow"],
  "hdf5": ["h5py"],
}
DATA = sorted({need for needs in EXPORTS.values() for need in needs})
# What makes the notebooks of their scripts, and runs them.
NOTEBOOKS = ["ipykernel", "jupytext", "nbclient", "nbformat"]
RAY = ["ray[train]>=2.60"]
ENVIRONMENTS = sorted({requirement for needs in SUITES.values() for requirement in needs})

setuptools.setup(
  # `podracer` on PyPI belongs to another project; the import name stays `podracer`.
  name="podracer-rl",
  version="0.1.0",
  description="Podracer architectures (Anakin and Sebulba) for reinforcement learning in JAX",
  long_description=(HERE / "README.md").read_text(encoding="utf-8"),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  classifiers=[
    "Development Status :: 3 - Alpha",
    "Intended Audience :: Science/Research",
    "Programming Language :: Python :: 3.11",
    "Programming Language :: Python :: 3.12",
    "Programming Language :: Python :: 3.13",
    "Topic :: Scientific/Engineering :: Artificial Intelligence",
  ],
  python_requires=">=3.11",
  packages=packages,
  package_dir={f"podracer.{part}": part for part in PARTS},
  package_data={"podracer": ["py.typed"], "podracer.launch": ["launchpad_requirements.txt"]},
  install_requires=[
    "absl-py",
    "chex",
    "flax>=0.11",
    "gymnax>=1.0",
    # No wheel for Windows: expert data says so there.
    "array-record>=0.8; platform_system != 'Windows'",
    "imageio",
    "imageio-ffmpeg",
    "jax>=0.7.2",
    "matplotlib",
    "numpy>=2",
    "optax>=0.2.8",
    "grain>=0.2.12; platform_system != 'Windows'",
    "protobuf>=5",
    "pyarrow>=18",
    "pyyaml",
    "orbax-checkpoint>=0.11.20",
    "rich",
    "flashbax>=0.1.3",
    "mctx>=0.0.5",
    "rlax>=0.1.7",
    "six",  # gymnax imports it without declaring it.
    "tensorboardX",
    "tyro>=1.0",
  ],
  extras_require={
    **SUITES,
    "environments": ENVIRONMENTS,
    **EXPORTS,
    "data": DATA,
    "notebooks": NOTEBOOKS,
    "ray": RAY,
    "wandb": ["wandb"],
    "test": [
      *ENVIRONMENTS,
      *DATA,
      *NOTEBOOKS,
      *RAY,
      "build",
      "datasets>=3",
      "jsonschema",
      "tensorflow-datasets>=4.9.8",
      "mypy",
      "pytest",
      "pytest-timeout",
      "pytest-xdist",
      "ruff",
      "tensorboard",
    ],
  },
  entry_points={"console_scripts": ["podracer = podracer.launch.main:main"]},
)
