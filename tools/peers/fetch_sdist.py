"""Fetches a source distribution as it lies in the package index, without building it.

`pip download` asks every source distribution for its metadata, and some start to compile when asked. This takes pip's own
finder and session instead, so that the index, mirrors, certificates and proxies are those pip is configured with here.

    python fetch_sdist.py NAME==VERSION SHA256 FOLDER     prints the path of the file
"""

import hashlib
import sys
from pathlib import Path

from pip._internal.commands import create_command
from pip._internal.models.candidate import InstallationCandidate
from pip._vendor.packaging.requirements import Requirement


def sdist_of(command, options, session, requirement: Requirement) -> InstallationCandidate:
    options.format_control.disallow_binaries()  # source distributions only
    finder = command._build_package_finder(options=options, session=session)
    best = finder.find_best_candidate(requirement.name, requirement.specifier).best_candidate
    if best is None:
        raise SystemExit(f"{requirement}: the package index of this machine offers no source distribution of it")
    return best


def main(spec: str, sha256: str, folder: Path) -> None:
    command = create_command("download")
    options, _ = command.parse_args([])
    with command.main_context():
        session = command.get_default_session(options)
        link = sdist_of(command, options, session, Requirement(spec)).link
        target = folder / link.filename
        folder.mkdir(parents=True, exist_ok=True)
        if not (target.exists() and digest(target) == sha256):
            response = session.get(link.url_without_fragment, headers={"Accept-Encoding": "identity"})
            response.raise_for_status()
            target.write_bytes(response.content)
    got = digest(target)
    if got != sha256:
        raise SystemExit(f"{target}: expected SHA-256 {sha256}, got {got}; the index serves another file, delete it")
    print(target)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
