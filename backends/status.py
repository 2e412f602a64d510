"""What NAME_init and NAME_run return besides 0: for the entry points that give it, the header that names it and the programs that ask."""

EINIT, EWEIGHTS, ECPU = 1, 2, 3
