"""Events as they happen: a bus that loses nothing, a consumer that keeps every user's session fresh online."""
