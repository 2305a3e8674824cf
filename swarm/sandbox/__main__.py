"""`python -m swarm.sandbox` is a zygote; see there."""

from swarm.sandbox.zygote import main

main()
