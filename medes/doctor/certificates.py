"""Certificates of this machine's daemons, as the installed settings and the environment name them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from medes.certs.folder import cluster_folder, load_authority
from medes.certs.identity import WARN_DAYS, FileIdentity
from medes.config import AgentSettings, ControllerSettings, Settings, load
from medes.doctor.check import Check
from medes.errors import MedesError, NotFoundError
from medes.rpc.tls import TlsFiles

GROUP = "certificates"
SETTINGS = Path("/etc/medes/medes.toml")


def probe() -> Iterator[Check]:
    folders = {cluster_folder()}
    for cls in (AgentSettings, ControllerSettings):
        try:
            settings: Settings = load(cls, SETTINGS if SETTINGS.exists() else None)
        except MedesError as error:
            yield Check(GROUP, f"{cls.SECTION} settings", False, str(error), "", "starting it")
            continue
        if settings.insecure_plaintext:
            yield Check(
                GROUP,
                f"{cls.SECTION} TLS",
                False,
                "INSECURE: insecure_plaintext is set, whoever reaches its ports is served",
                "take it out of the settings",
                "anything but a laboratory",
            )
        elif settings.tls.enabled:
            yield _files(cls.SECTION, settings.tls)
        else:
            folders.add(settings.cluster_path)
    for folder in sorted(folders):
        yield _folder(folder)


def _files(section: str, files: TlsFiles) -> Check:
    name = f"{section} TLS"
    try:
        identity = FileIdentity(files)
    except MedesError as error:
        return Check(GROUP, name, False, str(error), "medes certs issue", "starting it")
    days = (identity.expires_s - time.time()) / 86400
    works = days > WARN_DAYS
    detail = f"{identity.party or 'names no party'}: {files.certificate}, {days:.0f} days left"
    return Check(GROUP, name, works, detail, "" if works else "medes certs renew", "connections")


def _folder(folder: Path) -> Check:
    name = "cluster folder"
    try:
        authority = load_authority(folder)
    except NotFoundError:
        return Check(GROUP, name, True, f"{folder}: no CA yet; the first daemon makes one")
    except MedesError as error:
        return Check(GROUP, name, False, str(error), error.hint, "daemons without TLS files")
    days = (authority.expires_s - time.time()) / 86400
    return Check(GROUP, name, days > WARN_DAYS, f"{folder}: {authority.name}, {days:.0f} days left")
