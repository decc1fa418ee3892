{% macro asked(name) -%}
    {#- What a run is asked for: the var or, where it is empty, the environment's RELOOP_<NAME>. Other vars make dbt parse
        the whole project anew, and a day's build would begin with that; the environment is read when a model runs. -#}
    {%- if var(name) == '' and execute -%}
        {%- set said = env_var('RELOOP_' ~ name | upper, '') -%}
        {%- do return(fromjson(said, said)) -%}
    {%- endif -%}
    {%- do return(var(name)) -%}
{%- endmacro %}


{% macro first_day() -%}
    {#- The first day of a run that resumes, as a literal: a constant that reaches the files and the row groups. -#}
    date '{{ asked("as_of_from") }}'
{%- endmacro %}


{% macro last_day() -%}
    {#- The last day of the run, likewise; without one, the end of time. -#}
    date '{{ asked("as_of_to") or "9999-12-30" }}'
{%- endmacro %}


{% macro resumes() -%}
    {#- Whether this run goes on from the state of the day before its first; if not, everything is worked out from the lake. -#}
    {%- if execute -%}
        {%- if flags.FULL_REFRESH or not asked('as_of_from') -%} {%- do return(false) -%} {%- endif -%}
        {%- for name in ['int_user_state', 'int_item_state'] -%}
            {%- set state = adapter.get_relation(this.database, this.schema, name) -%}
            {%- if not state -%} {%- do return(false) -%} {%- endif -%}
            {%- set before = run_query('select 1 from ' ~ state ~ ' where as_of = ' ~ first_day() ~ ' - 1 limit 1') -%}
            {%- if not before.rows | length -%} {%- do return(false) -%} {%- endif -%}
        {%- endfor -%}
        {%- do return(true) -%}
    {%- endif -%}
    {%- do return(false) -%}
{%- endmacro %}


{% macro carries_on() -%}
    {#- Whether the model stands and only gains the days of this run. -#}
    {%- do return(resumes() and is_incremental()) -%}
{%- endmacro %}


{% macro get_incremental_days_sql(arguments) -%}
    {#- The incremental strategy `days`: this run's days of the column `unique_key` are replaced, one transaction a model.
        `as_of` counts the days built. `known_on` counts what became known: all of the past where the run does not resume. -#}
    {%- set columns = get_quoted_csv(arguments['dest_columns'] | map(attribute='name')) -%}
    {%- set day = arguments['unique_key'] -%}
    delete from {{ arguments['target_relation'] }}
    where {{ day }} <= {{ last_day() }}
    {%- if asked('as_of_from') and (day == 'as_of' or resumes()) %} and {{ day }} >= {{ first_day() }} {%- endif %};
    insert into {{ arguments['target_relation'] }} ({{ columns }})
    select {{ columns }} from {{ arguments['temp_relation'] }}
{%- endmacro %}


{% macro late_days() -%}
    {#- The days named late as a list of literals; never an empty one, which SQL does not have. -#}
    date '{{ (['0001-01-01'] + asked('late_days')) | join("', date '") }}'
{%- endmacro %}


{% macro earliest_day() -%}
    {#- The earliest day of which a run that resumes can learn anything: a constant, so that older row groups are skipped. -#}
    {%- if asked('late_days') is string -%}
        date '0001-01-01'
    {%- else -%}
        least({{ first_day() }} - 1, date '{{ (asked('late_days') + ['9999-12-31']) | min }}')
    {%- endif -%}
{%- endmacro %}
