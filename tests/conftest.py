pytest_plugins = ["tests.command", "tests.servers.plugin", "tests.servers.dask_cluster"]
