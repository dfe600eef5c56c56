"""Alembic's entry point; Database.migrate hands it a connection with the lock already taken."""

from alembic import context

from serve_app.store.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
