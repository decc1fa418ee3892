{% macro lake_holds(table) -%}
    {#- Whether a table of the lake has landed: not every source knows its users or its items. -#}
    {%- if execute -%}
        {%- set file = env_var('RELOOP_HOME', '../var') ~ '/lake/' ~ table ~ '/' ~ table ~ '.parquet' -%}
        {%- do return(run_query("select count(*) from glob('" ~ file | replace("'", "''") ~ "')").rows[0][0] > 0) -%}
    {%- endif -%}
    {%- do return(true) -%}
{%- endmacro %}
