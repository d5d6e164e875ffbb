pytest_plugins = ["tests.support.command", "tests.servers.plugin", "tests.servers.dask_cluster"]
