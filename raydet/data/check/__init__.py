"""`raydet data check`: what is wrong with a set, found picture by picture in bounded memory."""
