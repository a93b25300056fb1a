"""The ledger's database: engine, tables, migrations, rows."""
