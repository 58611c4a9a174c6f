"""Several processes of one run: joining, agreement between them, and the heartbeat that notices a lost one."""
