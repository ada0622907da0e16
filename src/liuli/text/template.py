"""The chat template: the single place where messages become text.

Jinja, in the dialect of transformers' `apply_chat_template`, so that the same lines serve here, in transformers and
in vLLM. What stands between `generation` and `endgeneration` is what the assistant must produce: the loss mask.
Of a message it looks at the role, and at whether there are thoughts and tool calls; `chat.py` relies on that.
"""

CHAT_TEMPLATE = """\
<|bos|>
{%- for message in messages %}
    {%- if message.role not in ['system', 'user', 'assistant', 'tool'] %}
        {{- raise_exception('a message has the role ' ~ message.role ~ '; known: system, user, assistant, tool') }}
    {%- endif %}
    {{- '<|' ~ message.role ~ '|>' }}
    {%- if message.role == 'assistant' %}
        {%- generation %}
        {%- if message.reasoning_content %}
            {{- '<|think|>' ~ message.reasoning_content ~ '<|/think|>' }}
        {%- endif %}
        {{- message.content or '' }}
        {%- for call in message.tool_calls or [] %}
            {%- set arguments = call.function.arguments %}
            {{- '<|call|>' ~ call.function.name ~ ' ' }}
            {{- arguments if arguments is string else arguments | tojson }}
        {%- endfor %}
        {{- '<|end|>' }}
        {%- endgeneration %}
    {%- else %}
        {{- message.content or '' }}
        {{- '<|end|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>' }}
{%- endif %}
"""
