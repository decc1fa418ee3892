"""Events become arrays: interactions with dense ids, time splits, training sets."""
