"""The measurements that the documentation quotes, each one command, and the corpora that they are made on."""
