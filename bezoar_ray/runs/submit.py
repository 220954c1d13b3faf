"""`bezoar submit`: carry out a run as a Ray job on a cluster.

The job runs `bezoar run` on the head node. It needs no GPU and keeps no data there:
all results are in the run directory. A run directory has one job at a time. To submit
it again while it runs attaches to that job.
"""

import asyncio
import contextlib
import hashlib
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from bezoar_ray.errors import BezoarError, RecipeError
from bezoar_ray.recipe import Recipe
from bezoar_ray.recipe.section import matches
from bezoar_ray.runtime.session import SETTINGS

if TYPE_CHECKING:
    from ray.job_submission import JobDetails

# The time that training has to write its last checkpoint. Ray's default is 3 s.
_STOP_SETTINGS = {"RAY_JOB_STOP_WAIT_TIME_S": "30"}
# The CUDA stack has several GB. Ray's default is 600 s.
_SETUP_CONFIG = {"setup_timeout_seconds": 3600}
_EXIT_CODES = (2, 3, 4, 130)  # of `bezoar run`
_EXIT_FAILED = 3
_EXIT_INTERRUPTED = 130
_UV_VERSION = "==0.13.8"  # as in cluster/Dockerfile
_RUN_DIR = "bezoar_run_dir"  # key of the job's metadata
_RECIPE = "recipe.yaml"
_PINS = "bezoar-requirements.txt"


@dataclass(frozen=True)
class SubmittedJob:
    """A job on a cluster."""

    id: str
    """The submission id."""
    status: str
    """A value of `ray.job_submission.JobStatus`."""
    found: bool
    """Whether an earlier command submitted it."""


class JobFailed(BezoarError):
    """A job did not succeed. The command ends with the exit code of the job."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.exit_code = code


class Jobs:
    """The jobs of a cluster, by the URL of its dashboard (http://head:8265).

    Raises:
        RecipeError: Nothing answers at the URL, or the token is refused.
    """

    def __init__(self, address: str):
        from ray.exceptions import AuthenticationError
        from ray.job_submission import JobSubmissionClient

        if not address.startswith(("http://", "https://")):
            raise RecipeError(
                f"--address {address}: expected the dashboard's URL, as in "
                "http://127.0.0.1:8265"
            )
        self._address = address
        try:
            self._client = JobSubmissionClient(address)
        except (ConnectionError, RuntimeError, AuthenticationError) as error:
            first_line = str(error).strip().splitlines()[0]
            raise RecipeError(
                f"--address {address}: {first_line}. Give the dashboard's address "
                "(port 8265, through a tunnel or `kubectl port-forward`). For a cluster "
                "with authentication, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"
            ) from error

    def submit(
        self,
        recipe: Recipe,
        run_dir: str,
        arguments: list[str],
        requirements: str | None = None,
    ) -> SubmittedJob:
        """Submit `bezoar run`, or attach to the job that is using this run directory.

        Args:
            recipe: The recipe. It is uploaded with the files that it names.
            run_dir: A URL, or an absolute path that all nodes see.
            arguments: Extra arguments of `bezoar run`.
            requirements: A file of pinned packages, for nodes whose image does not
                have bezoar_ray.

        Raises:
            RecipeError: The cluster could not find the run directory or a file.
        """
        if "://" not in run_dir and not Path(run_dir).is_absolute():
            raise RecipeError(
                f"--run-dir {run_dir}: the nodes of a cluster cannot find a relative "
                "path. Give s3://…, gs://…, or the absolute path of a folder that all "
                "nodes see"
            )
        # The same folder with a slash at its end has to find the same job.
        run_dir = run_dir.rstrip("/")
        running = self.working_on(run_dir)
        if running:
            return running
        command = ["python", "-m", "bezoar_ray.cli", "run", _RECIPE]
        command += ["--run-dir", run_dir, *arguments]
        with packed(recipe, requirements) as folder:
            try:
                id = self._client.submit_job(
                    entrypoint=shlex.join(command),
                    # Not Ray's random id: of two commands that submit
                    # at once, one is refused.
                    submission_id=self._next_id(recipe.name, run_dir),
                    runtime_env=runtime_env(folder),
                    metadata={_RUN_DIR: run_dir},
                )
            except (RuntimeError, OSError) as error:
                raise BezoarError(
                    f"--address {self._address}: the cluster refused the job: "
                    f"{str(error).strip()[:500]}. Submit again. If another command has "
                    "submitted this run in the meantime, that attaches to its job"
                ) from error
        return SubmittedJob(id, "PENDING", found=False)

    def working_on(self, run_dir: str) -> SubmittedJob | None:
        """Return the job that is using a run directory."""
        for job in self._jobs_of(run_dir):
            if not job.status.is_terminal():
                return _submitted(job)
        return None

    def last(self, run_dir: str) -> SubmittedJob | None:
        """Return the latest job of a run directory."""
        jobs = sorted(self._jobs_of(run_dir), key=lambda job: job.start_time or 0)
        return _submitted(jobs[-1]) if jobs else None

    def follow(self, id: str) -> None:
        """Print the output of a job until it ends. Ctrl-C stops this, and not the job.

        Raises:
            JobFailed: The job did not succeed.
            BezoarError: The connection to the cluster was lost.
        """
        from aiohttp import ClientError

        async def print_output() -> None:
            async for text in self._client.tail_job_logs(id):
                print(text, end="", flush=True)

        try:
            asyncio.run(print_output())
            details = self._client.get_job_info(id)
            if not details.status.is_terminal():
                raise ConnectionError("the output ended before the job")
        except (
            RuntimeError,
            OSError,
            ClientError,
        ) as error:  # `requests` raises OSErrors
            raise BezoarError(
                f"lost the connection to the cluster, where job {id} may still run: "
                f"{type(error).__name__} {error}. Run `bezoar status` with the same "
                "--address and --follow to attach again"
            ) from error
        if details.status.value != "SUCCEEDED":
            raise _job_failed(id, details)

    def _jobs_of(self, run_dir: str) -> "list[JobDetails]":
        run_dir = run_dir.rstrip("/")
        jobs = []
        for job in self._client.list_jobs():
            if (job.metadata or {}).get(_RUN_DIR) == run_dir:
                jobs.append(job)
        return jobs

    def _next_id(self, name: str, run_dir: str) -> str:
        """Return a new submission id: one more than the highest, and not the count.

        Earlier jobs may have been deleted.
        """
        prefix = f"bezoar-{name}-{hashlib.sha256(run_dir.encode()).hexdigest()[:8]}-"
        highest = 0
        for job in self._jobs_of(run_dir):
            id = job.submission_id or ""
            if id.startswith(prefix):
                highest = max(highest, int(id.removeprefix(prefix)))
        return f"{prefix}{highest + 1}"


def _submitted(job: "JobDetails") -> SubmittedJob:
    return SubmittedJob(job.submission_id or "", job.status.value, found=True)


def _job_failed(id: str, details: "JobDetails") -> JobFailed:
    status = details.status.value
    lines = (details.message or "").strip().splitlines()
    last_line = lines[-1] if lines else ""
    # The driver's exit code is None or that of a signal if it did not end by itself.
    code = details.driver_exit_code
    if status == "STOPPED":
        code = _EXIT_INTERRUPTED
    if code not in _EXIT_CODES:
        code = _EXIT_FAILED
    return JobFailed(f"job {id} {status.lower()}: {last_line}", code)


def runtime_env(folder: Path) -> dict[str, object]:
    """Return the Ray runtime environment of a job.

    It has the packed files. If pinned packages are among them, it has those, too, and
    the code of bezoar_ray. It never has an API key: keys come from the environment of
    the nodes.
    """
    environment: dict[str, Any] = {
        "working_dir": str(folder),
        # The cluster's processes do not have the environment of this machine.
        "env_vars": SETTINGS | _STOP_SETTINGS,
        "config": _SETUP_CONFIG,
    }
    if (folder / _PINS).exists():
        import bezoar_ray

        # By file name: Ray passes a runtime_env in one environment variable, and the
        # list of all pins is longer than a variable may be.
        environment["uv"] = {
            "packages": [f"-r ${{RAY_RUNTIME_ENV_CREATE_WORKING_DIR}}/{_PINS}"],
            # The pins are complete, and resolving would bring back what they leave out.
            "uv_pip_install_options": ["--no-deps", "--require-hashes"],
            "uv_version": _UV_VERSION,
        }
        environment["py_modules"] = [str(Path(bezoar_ray.__file__).parent)]
    return environment


@contextlib.contextmanager
def packed(recipe: Recipe, requirements: str | None = None) -> Iterator[Path]:
    """Provide a folder with the files that a job needs from this machine.

    These are the recipe, the files that it names by relative paths, and the pinned
    packages.

    Raises:
        RecipeError: A path leads out of the current folder, or to a folder, such as
            the weights of a model.
    """
    with tempfile.TemporaryDirectory(prefix="bezoar_ray-") as name:
        folder = Path(name)
        for pattern in recipe.files():
            for path in matches(pattern):
                # The nodes have files with absolute paths, or the job reports them.
                if not path.is_absolute():
                    _pack_file(pattern, path, folder)
        tree = recipe.model_dump(mode="json")
        (folder / _RECIPE).write_text(yaml.safe_dump(tree, sort_keys=False))
        if requirements:
            shutil.copyfile(requirements, folder / _PINS)
        yield folder


def _pack_file(pattern: str, path: Path, folder: Path) -> None:
    if ".." in path.parts or path.is_dir():
        message = (
            f"{pattern!r} cannot be uploaded with the job. Put it where all nodes see "
            "it, and name it by its absolute path"
        )
        if path.is_dir():
            message += ". For a model, you can also give its name on the hub"
        raise RecipeError(message)
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, folder / path)
