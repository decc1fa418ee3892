"""The only room that speaks dbt and Feast: build, historical, materialize, online."""
