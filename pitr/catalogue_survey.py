"""From the catalogue to the planner: gather all that is known of an archive and its ancestors."""

from __future__ import annotations

from pitr.catalogue.sqlite import Catalogue
from pitr.errors import NotInitialised, TargetRefused
from pitr.layout import ArchiveId
from pitr.quorum import Answers
from pitr.survey import ArchiveEnd, ArchiveSurvey


def newest_archive(catalogue: Catalogue, *, system_identifier: int | None = None) -> ArchiveId:
    """Return the newest writer epoch of the one cluster, or of the one that is named.

    Raises NotInitialised if there is none, TargetRefused if there are several clusters to choose from.
    """
    archives = [
        archive
        for archive in catalogue.archives()
        if system_identifier is None or archive.system_identifier == system_identifier
    ]
    if not archives:
        raise NotInitialised("the repository holds no archive", hint="run `pitr init`, then `pitr backup`")
    systems = sorted({archive.system_identifier for archive in archives})
    if len(systems) > 1:
        raise TargetRefused(
            "the repository holds the archives of several clusters",
            detail=f"system identifiers {', '.join(map(str, systems))}",
            hint="say which with --system-identifier",
        )
    return max(archives)


def survey_archive(catalogue: Catalogue, archive: ArchiveId, answers: Answers) -> ArchiveSurvey:
    """Return what the catalogue knows of an archive and of the epochs of the same cluster.

    ``answers`` are those of the regions when the catalogue was made; see ``ArchiveEnd``.
    """
    own = [other for other in catalogue.archives() if other.system_identifier == archive.system_identifier]
    recorded = catalogue.head(archive)
    head = None if recorded is None else recorded.head
    return ArchiveSurvey(
        archive=archive,
        epochs=tuple(record for record in catalogue.epochs() if record.archive in own),
        histories={other: catalogue.histories(other) for other in own},
        backups=tuple(found.manifest for other in own for found in catalogue.backups(other)),
        units=tuple(unit for other in own for unit in catalogue.wal_units(other)),
        end=ArchiveEnd.of(head, answers),
    )
