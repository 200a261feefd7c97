//! SQLite: schema, migrations, one writer thread. Speaks `model`, never `wire` responses.
