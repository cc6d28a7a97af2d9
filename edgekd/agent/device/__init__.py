"""What a device says of itself: machine, power, temperature, and the folders that edgekd keeps there."""
