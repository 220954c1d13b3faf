"""The layout of a run directory: every path in it, relative to its root."""

from dataclasses import dataclass

RECIPE = "recipe.yaml"
"""The resolved recipe."""
REVISIONS = "revisions.json"
"""The commits that the recipe's branches and tags named when the run began."""
SUMMARY = "summary.json"
REPORT = "report.html"
PAIRS = "data/hh_rlhf"
"""Pairs of HH-RLHF, in a folder for each use."""
COUNTERFACTUALS = "data/counterfactuals.jsonl"
"""Rows that judges rated twice: as they are, and with another group of people."""
RATED = "data/rated"
"""Rated answers and preferences, in a folder for each."""
DECISIONS = "review/decisions"
"""What people decided on rows: a file of lines for each session of a reviewer."""
VOTES = "review/pairs"
"""What people said of pairs of answers, as in `DECISIONS`."""
APPROVALS = "review/approvals"
"""Approvals of the filter's rows, a file each."""
TOKENIZED = "train/data"
"""Tokenized rows of the training stages."""
HARNESS = "eval/harness"
"""Results of lm-eval."""
MT_BENCH = "eval/mt_bench"
"""Answers and verdicts of MT-Bench."""
REWARD_BENCH = "eval/reward_bench"
"""What the reward model and the checkpoints say of RewardBench's answers."""
CONVERSATIONS = f"{MT_BENCH}/index.html"
"""The page that shows the answers and verdicts of MT-Bench."""


@dataclass(frozen=True)
class CheckpointLayout:
    """The paths of one checkpoint.

    The base has `lineage`, `heldout`, a tokenizer and a chat template only.
    """

    name: str

    @property
    def folder(self) -> str:
        """The folder of the checkpoint."""
        return f"checkpoints/{self.name}"

    @property
    def adapter(self) -> str:
        """The LoRA adapter as it was trained."""
        return f"{self.folder}/adapter"

    @property
    def merged(self) -> str:
        """The full model, with the adapter merged into its weights."""
        return f"{self.folder}/merged"

    @property
    def joined(self) -> str:
        """The combined adapter: one LoRA on the base for the whole chain."""
        return f"{self.folder}/joined"

    @property
    def scalar(self) -> str:
        """A reward model with one output: the weighted score."""
        return f"{self.folder}/scalar"

    @property
    def lineage(self) -> str:
        """The fingerprint and the parents of the checkpoint."""
        return f"{self.folder}/lineage.json"

    @property
    def heldout(self) -> str:
        """The margin of each held-out pair."""
        return f"{self.folder}/heldout.jsonl"

    @property
    def answers(self) -> str:
        """The answers of a policy to held-out prompts while it learned by reward."""
        return f"{self.folder}/answers.jsonl"


def checkpoint(name: str) -> CheckpointLayout:
    """Return the paths of a checkpoint."""
    return CheckpointLayout(name)


def manifest(stage: str) -> str:
    """Return the manifest of a stage: the list of the files that count."""
    return f"manifests/{stage}.json"


def samples(scheme: str, status: str) -> str:
    """Return the folder with the Parquet files of a scheme's rows of one status."""
    return f"data/{scheme}/{status}"


def rated(kind: str, part: str) -> str:
    """Return a file of rated rows.

    Args:
        kind: `ratings` or `preferences`.
        part: `train` or `heldout`.
    """
    return f"{RATED}/{kind}/{part}/part-0.parquet"


def votes(reviewer: str) -> str:
    """Return the file with a reviewer's votes on pairs of answers, in FastChat's form."""
    return f"review/model_judgment/{reviewer}_pair.jsonl"


def ledger(role: str) -> str:
    """Return the folder with all calls of a role, such as teacher or judge."""
    return f"ledger/{role}"


def training(key: str, part: str = "") -> str:
    """Return the folder with the training state of a stage, by its `Stage.key`.

    Args:
        key: of the stage.
        part: one of several trainings of the stage.
    """
    # Beside the stage's folder and not in it, where a run removes what is not its own.
    return f"train/{key}-{part}" if part else f"train/{key}"


def part(name: str) -> str:
    """Return the folder with what one of several trainings of a stage leaves."""
    return f"train/{name}"


def part_adapter(name: str) -> str:
    """Return the folder with the adapter of one of several trainings of a stage."""
    return f"{part(name)}/adapter"


def part_merged(name: str) -> str:
    """Return the folder with the full model of one of several trainings of a stage."""
    return f"{part(name)}/merged"


def progress(key: str) -> str:
    """Return the file with the progress of a stage's training."""
    return f"{training(key)}/progress.json"


def harness(checkpoint: str) -> str:
    """Return the file with the lm-eval results of a checkpoint."""
    return f"{HARNESS}/{checkpoint}.json"


def reward_bench(model: str) -> str:
    """Return the file with what a model says of RewardBench's answers."""
    return f"{REWARD_BENCH}/{model}.json"


def card(part: str) -> str:
    """Return the card of a checkpoint or of the data set."""
    return f"cards/{part}.md"


def log(name: str) -> str:
    """Return a log file."""
    return f"logs/{name}"
