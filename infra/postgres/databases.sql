-- One database each: their schemas migrate on their own. Runs once, on an empty data folder.
CREATE DATABASE airflow;
CREATE DATABASE mlflow;
CREATE DATABASE feast;
CREATE DATABASE releases;
