"""A table encrypted under the server, a column by SQL, a ransom note: the next backup shows each of them."""

from __future__ import annotations

import os
from pathlib import Path

from fix_increment import SUMMARIES, Chain
from fix_postgres import PostgresFactory, PostgresHouse

from pitr.rot_signals import Level, is_alarming, rot_signals


def test_what_an_attacker_does_to_a_cluster_shows_in_the_next_backup(
    postgres_factory: PostgresFactory, postgres_house: PostgresHouse, server_tmp_path: Path
) -> None:
    server = postgres_factory(17, settings=SUMMARIES, name="attacked")
    chain = Chain.below(server_tmp_path, server, postgres_house.user)
    server.execute("CREATE EXTENSION pgcrypto")
    for table in ("notes", "letters"):
        # Room in each page, so that an update stays in the file that it is in.
        server.execute(f"CREATE TABLE {table} (id int, text bytea) WITH (fillfactor = 45)")
        server.execute(
            f"INSERT INTO {table} SELECT g, convert_to(repeat('patient ' || g % 50, 60), 'UTF8')"
            " FROM generate_series(1, 8000) g"
        )
        server.execute(f"VACUUM {table}")
    chain.back_up()
    quiet = chain.back_up(parent=None)
    assert rot_signals(quiet, [one.backup for one in chain.moments]) == ()

    server.execute("UPDATE notes SET text = pgp_sym_encrypt_bytea(text, 'ransom', 'compress-algo=0')")
    server.execute("VACUUM notes")
    column = chain.back_up(parent=None)
    (found,) = rot_signals(column, [one.backup for one in chain.moments])
    assert (found.level, found.subject) == (
        Level.HIGH,
        str(server.value("SELECT pg_relation_filepath('notes')")),
    )

    server.execute("CHECKPOINT")
    path = str(server.value("SELECT pg_relation_filepath('letters')"))
    file = server.data_dir / path
    size_bytes = file.stat().st_size
    with file.open("r+b") as stream:
        stream.write(os.urandom(size_bytes))
    (file.parent / "HOW_TO_GET_YOUR_DATA_BACK.txt").write_text("pay")
    manifest = chain.house.back_up(server.dsn, wait_for_wal=chain.archiver.gate)
    signals = rot_signals(manifest, [one.backup for one in chain.moments])
    assert is_alarming(signals)
    critical = {signal.subject: signal.message for signal in signals if signal.level is Level.CRITICAL}
    assert "postgres.public.letters" in critical
    assert any(subject.endswith("HOW_TO_GET_YOUR_DATA_BACK.txt") for subject in critical)
