"""Routes that only this server has: the machine that it runs on."""
