"""Where the project is on disk, for benches that read its models and write its docs."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
