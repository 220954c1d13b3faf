"""`bezoar submit`: a run as a Ray job on a cluster, followed from here, safe to submit again.

The job runs `bezoar run` on the cluster's head, without a GPU and without data: all that lasts is in the run directory.
One run directory has one job at a time; submitting it again while it runs attaches to that job.
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

_PATIENCE = {
    "RAY_JOB_STOP_WAIT_TIME_S": "30"
}  # for training's last checkpoint; Ray's own is 3
_SET_UP = {
    "setup_timeout_seconds": 3600
}  # the CUDA stack has several GB; Ray's own is 600
_OURS = (2, 3, 4, 130)  # exit codes of `bezoar run`
_UV = "==0.13.8"  # of cluster/Dockerfile
_RUN_DIR, _RECIPE, _PINS = "bezoar_run_dir", "recipe.yaml", "bezoar-requirements.txt"


@dataclass(frozen=True)
class SubmittedJob:
    """A job on a cluster: its submission id, Ray's word for its state, and whether it was there before."""

    id: str
    status: str
    found: bool


class JobFailed(BezoarError):
    """The job ended without success; its exit code is ours."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.exit_code = code


class Jobs:
    """The jobs of a cluster, by the address of its dashboard (http://head:8265).

    Raises:
        RecipeError: nothing answers there, or not to this token.
    """

    def __init__(self, address: str):
        from ray.exceptions import AuthenticationError
        from ray.job_submission import JobSubmissionClient

        if not address.startswith(("http://", "https://")):
            raise RecipeError(
                f"--address {address}: expected the dashboard's URL, as in http://127.0.0.1:8265"
            )
        self._address = address
        try:
            self._client = JobSubmissionClient(address)
        except (ConnectionError, RuntimeError, AuthenticationError) as error:
            raise RecipeError(
                f"--address {address}: {str(error).strip().splitlines()[0]}. It is the dashboard's address (port 8265, "
                "by a tunnel or `kubectl port-forward`); RAY_AUTH_MODE=token and RAY_AUTH_TOKEN open a guarded cluster"
            ) from error

    def submit(
        self,
        recipe: Recipe,
        run_dir: str,
        arguments: list[str],
        requirements: str | None = None,
    ) -> SubmittedJob:
        """Submit `bezoar run`, or find the job that works on this run directory already.

        Args:
            recipe: goes along, with the files that it names.
            run_dir: a URL, or an absolute path that all nodes see.
            arguments: further ones of `bezoar run`.
            requirements: a file of pinned packages for nodes whose image has no bezoar_ray.

        Raises:
            RecipeError: a run directory or a file that the cluster could not find.
        """
        if "://" not in run_dir and not Path(run_dir).is_absolute():
            raise RecipeError(
                f"--run-dir {run_dir}: a cluster's nodes know no folder by a relative path. "
                "Give s3://…, gs://…, or the absolute path of a folder that all nodes see"
            )
        run_dir = run_dir.rstrip("/")
        if there := self.working_on(run_dir):
            return there
        command = [
            "python",
            "-m",
            "bezoar_ray.cli",
            "run",
            _RECIPE,
            "--run-dir",
            run_dir,
            *arguments,
        ]
        with packed(recipe, requirements) as folder:
            try:
                id = self._client.submit_job(
                    entrypoint=shlex.join(command),
                    submission_id=self._next_id(recipe.name, run_dir),
                    runtime_env=runtime_env(folder),
                    metadata={_RUN_DIR: run_dir},
                )
            except (RuntimeError, OSError) as error:
                raise BezoarError(
                    f"--address {self._address}: the cluster does not take the job: {str(error).strip()[:500]}. "
                    "Submit again; if another command has submitted this run meanwhile, that attaches to it"
                ) from error
        return SubmittedJob(id, "PENDING", found=False)

    def working_on(self, run_dir: str) -> SubmittedJob | None:
        """The job that works on a run directory at the moment."""
        jobs = [job for job in self._of(run_dir) if not job.status.is_terminal()]
        return (
            SubmittedJob(jobs[0].submission_id or "", jobs[0].status.value, found=True)
            if jobs
            else None
        )

    def last(self, run_dir: str) -> SubmittedJob | None:
        """The latest job of a run directory."""
        jobs = sorted(self._of(run_dir), key=lambda job: job.start_time or 0)
        return (
            SubmittedJob(
                jobs[-1].submission_id or "", jobs[-1].status.value, found=True
            )
            if jobs
            else None
        )

    def follow(self, id: str) -> None:
        """Print a job's lines until it ends. Ctrl-C ends the following, and not the job.

        Raises:
            JobFailed: it ended without success.
            BezoarError: the cluster cannot be reached any more.
        """
        from aiohttp import ClientError

        async def lines() -> None:
            async for text in self._client.tail_job_logs(id):
                print(text, end="", flush=True)

        try:
            asyncio.run(lines())
            details = self._client.get_job_info(id)
            if not details.status.is_terminal():
                raise ConnectionError("its lines end, but not the job")
        except (RuntimeError, OSError, ClientError) as error:  # requests' are OSErrors
            raise BezoarError(
                f"lost the connection to the cluster, which may go on with job {id}: {type(error).__name__} {error}. "
                "`bezoar status` with the same --address and --follow takes it up again"
            ) from error
        if details.status.value != "SUCCEEDED":
            said = (details.message or "").strip().splitlines()[-1:] or [""]
            # The driver's own is None, or a signal's, where it did not end by itself.
            code = (
                130 if details.status.value == "STOPPED" else details.driver_exit_code
            )
            raise JobFailed(
                f"job {id} {details.status.value.lower()}: {said[0]}",
                code if code in _OURS else 3,
            )

    def _of(self, run_dir: str) -> "list[JobDetails]":
        return [
            job
            for job in self._client.list_jobs()
            if (job.metadata or {}).get(_RUN_DIR) == run_dir.rstrip("/")
        ]

    def _next_id(self, name: str, run_dir: str) -> str:
        """Numbered on from the last one: earlier ones may have been deleted."""
        start = f"bezoar-{name}-{hashlib.sha256(run_dir.encode()).hexdigest()[:8]}-"
        ids = [job.submission_id or "" for job in self._of(run_dir)]
        return f"{start}{1 + max((int(id.removeprefix(start)) for id in ids if id.startswith(start)), default=0)}"


def runtime_env(folder: Path) -> dict[str, object]:
    """What Ray sets up for the job: the packed files, and, where pins are among them, those and bezoar_ray.

    No key is in it: they come from the environment of the cluster's nodes.
    """
    found: dict[str, Any] = {
        "working_dir": str(folder),
        "env_vars": SETTINGS | _PATIENCE,
        "config": _SET_UP,
    }
    if (folder / _PINS).exists():
        import bezoar_ray

        # By its name: Ray hands a runtime_env on in one environment variable, and all pins are longer than that may be.
        pins = f"-r ${{RAY_RUNTIME_ENV_CREATE_WORKING_DIR}}/{_PINS}"
        options = ["--no-deps", "--require-hashes"]
        found["uv"] = {
            "packages": [pins],
            "uv_pip_install_options": options,
            "uv_version": _UV,
        }
        found["py_modules"] = [str(Path(bezoar_ray.__file__).parent)]
    return found


@contextlib.contextmanager
def packed(recipe: Recipe, requirements: str | None = None) -> Iterator[Path]:
    """A folder with the recipe and the files of this machine that it names by relative paths, and the pins.

    Raises:
        RecipeError: one that lies outside the current folder, or a whole folder (a model's weights).
    """
    with tempfile.TemporaryDirectory(prefix="bezoar_ray-") as name:
        folder = Path(name)
        for pattern in recipe.files():
            for path in matches(pattern):
                if path.is_absolute():
                    continue  # the nodes have it, or the job says that they have not
                if ".." in path.parts or path.is_dir():
                    raise RecipeError(
                        f"{pattern!r} cannot go along with the job: put it where all nodes see it, and name it by its "
                        "absolute path"
                        + (
                            ", or give the model's name on the hub"
                            if path.is_dir()
                            else ""
                        )
                    )
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, folder / path)
        (folder / _RECIPE).write_text(
            yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)
        )
        if requirements:
            shutil.copyfile(requirements, folder / _PINS)
        yield folder
