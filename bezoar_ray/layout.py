"""The layout of a run directory: every path in it, once, relative to its root."""

from dataclasses import dataclass

RECIPE = "recipe.yaml"
"""The resolved recipe."""
REVISIONS = "revisions.json"
"""The commits that branches and tags of the recipe stood for when the run began."""
SUMMARY = "summary.json"
REPORT = "report.html"
PAIRS = "data/hh_rlhf"
"""HH-RLHF's pairs, in one folder for each use."""
TOKENIZED = "train/data"
"""Tokenised rows of the training stages."""
HARNESS = "eval/harness"
MT_BENCH = "eval/mt_bench"
CONVERSATIONS = f"{MT_BENCH}/index.html"
"""The page for reading MT-Bench's answers and verdicts."""


@dataclass(frozen=True)
class CheckpointLayout:
    """The files of one checkpoint. The base has `lineage` and `heldout`, a tokenizer and a chat template."""

    name: str

    @property
    def folder(self) -> str:
        """All of it."""
        return f"checkpoints/{self.name}"

    @property
    def adapter(self) -> str:
        """The LoRA as it was trained."""
        return f"{self.folder}/adapter"

    @property
    def merged(self) -> str:
        """A whole model."""
        return f"{self.folder}/merged"

    @property
    def joined(self) -> str:
        """One LoRA on the untouched base for the whole chain."""
        return f"{self.folder}/joined"

    @property
    def lineage(self) -> str:
        """Its fingerprint and its parents."""
        return f"{self.folder}/lineage.json"

    @property
    def heldout(self) -> str:
        """The margin of each held-out pair."""
        return f"{self.folder}/heldout.jsonl"


def checkpoint(name: str) -> CheckpointLayout:
    """The files of a checkpoint."""
    return CheckpointLayout(name)


def manifest(stage: str) -> str:
    """The manifest of a stage: it is written last, and says which files count."""
    return f"manifests/{stage}.json"


def samples(scheme: str, status: str) -> str:
    """The folder with the Parquet files of a scheme's rows of one status."""
    return f"data/{scheme}/{status}"


def ledger(role: str) -> str:
    """The folder with every call of a role."""
    return f"ledger/{role}"


def training(key: str) -> str:
    """The folder with the state of a stage's training; `key` is the stage's key."""
    return f"train/{key}"


def progress(key: str) -> str:
    """How far a stage's training is."""
    return f"{training(key)}/progress.json"


def harness(checkpoint: str) -> str:
    """A checkpoint's results of lm-eval."""
    return f"{HARNESS}/{checkpoint}.json"


def card(part: str) -> str:
    """The card of a checkpoint or of the data set."""
    return f"cards/{part}.md"


def log(name: str) -> str:
    """A log file."""
    return f"logs/{name}"
