pytest_plugins = ["tests.servers.plugin", "tests.servers.dask_cluster"]
