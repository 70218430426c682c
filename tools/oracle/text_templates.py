"""Chat templates in the styles of the families served, written for these tests, and conversations for them.

Called by text_goldens.py; `goldens` renders every template with every conversation through transformers.
"""

from datetime import datetime
from unittest import mock

from transformers.utils import chat_template_utils

CHATML = """{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] | trim + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

LLAMA3 = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" }}
{%- if tools is not none %}
    {{- "You have these functions:\\n\\n" }}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if message.role == 'ipython' or message.role == 'tool' %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("Only one call at a time!") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
        {{- '{"name": "' + tool_call.name + '", ' }}
        {{- '"parameters": ' }}
        {{- tool_call.arguments | tojson }}
        {{- "}" }}
        {{- "<|eot_id|>" }}
    {%- else %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

QWEN3 = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- "# Tools\\n\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- else %}
    {%- if messages[0].role == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- else %}
            {%- if '</think>' in content %}
                {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
                {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
            {%- endif %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index %}
            {%- if loop.last or (not loop.last and reasoning_content) %}
                {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
            {%- else %}
                {{- '<|im_start|>' + message.role + '\\n' + content }}
            {%- endif %}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {%- if message.tool_calls %}
            {%- for tool_call in message.tool_calls %}
                {%- if (loop.first and content) or (not loop.first) %}
                    {{- '\\n' }}
                {%- endif %}
                {%- if tool_call.function %}
                    {%- set tool_call = tool_call.function %}
                {%- endif %}
                {{- '<tool_call>\\n{"name": "' }}
                {{- tool_call.name }}
                {{- '", "arguments": ' }}
                {%- if tool_call.arguments is string %}
                    {{- tool_call.arguments }}
                {%- else %}
                    {{- tool_call.arguments | tojson }}
                {%- endif %}
                {{- '}\\n</tool_call>' }}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' }}
        {{- content }}
        {{- '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""

GEMMA3 = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set first_user_prefix = messages[0]['content'] + '\\n\\n' -%}
    {%- else -%}
        {%- set first_user_prefix = messages[0]['content'][0]['text'] + '\\n\\n' -%}
    {%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- if (message['role'] == 'assistant') -%}
        {%- set role = "model" -%}
    {%- else -%}
        {%- set role = message['role'] -%}
    {%- endif -%}
    {{ '<start_of_turn>' + role + '\\n' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {{ item['text'] | trim }}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception("Invalid content type") }}
    {%- endif -%}
    {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{'<start_of_turn>model\\n'}}
{%- endif -%}
"""

MISTRAL = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('After the optional system message, roles must alternate user/assistant') }}
    {%- endif %}
    {%- if message["role"] == "user" %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- endif %}
{%- endfor %}
"""

# Things that real templates do now and then, none of one family.
CORNERS = """{% for message in messages %}
{% if message.role == 'system' %}{% set note = message.content %}{% endif %}
[{{ loop.index }}/{{ loop.length }}{{ ' first' if loop.first }}{{ ' last' if loop.last }}] {{ note if note is defined else '-' }}
{% if message.name is defined %}({{ message.name|upper }}){% endif %}
{%- if message.role == 'assistant' %}{% generation %}{{ message.content.strip() }}{{ eos_token }}{% endgeneration %}
{% else %}{{ message.content.rstrip().lstrip() }}|{{ message.content.strip(' .!') }}|{{ message.content[:5] }}|{{ message.content | length }}
{% endif %}
{% endfor %}
{{ messages | map(attribute='role') | join(',') }} {{ messages | selectattr('role', 'equalto', 'user') | list | length }}
{{ strftime_now('%Y-%m-%d %H:%M %A %B %d') }} {{ range(3) | list | tojson }} {% for i in range(4, 0, -2) %}{{ i }} {% endfor %}
{{ {'b': [1, 2.5, none, true], 'a': 'é"<&>'} | tojson }} {{ (documents or []) | length }}
{%- macro turn(role, text='x') %}<{{ role }}>{{ text }}</{{ role }}>{% endmacro %}
{{ turn('a') }}{{ turn('b', text='y') }} {{ 7 // 2 }} {{ 'ab' * 1 if false else 'c' ~ 3 }} {{ not tools }}
{% if add_generation_prompt %}>{% endif %}"""

TOOLS = [
    {
        'type': 'function',
        'function': {
            'name': 'get_tide',
            'description': 'Height of the tide — in metres <m> & "relative"',
            'parameters': {
                'type': 'object',
                'properties': {'harbour': {'type': 'string'}, 'hours': {'type': 'integer', 'minimum': 0}},
                'required': ['harbour'],
            },
        },
    }
]
CALL = {'id': 'c1', 'type': 'function', 'function': {'name': 'get_tide', 'arguments': {'harbour': 'Łódź', 'hours': 3}}}

HELLO = [{'role': 'user', 'content': 'Hello!'}]
TURNS = [
    {'role': 'system', 'content': '  You are brief.  '},
    {'role': 'user', 'content': '\n\n  Wie geht’s?\u00a0\u2003'},
    {'role': 'assistant', 'content': '\n  Gut.  \n'},
    {'role': 'user', 'content': '\ufeffBOM, \x1cFS and \x85NEL stay or go\x1c\x85'},
]
THINKING = [
    {'role': 'user', 'content': 'What is 2+2?'},
    {'role': 'assistant', 'content': '<think>\n\n two and two \n\n</think>\n\n  It is 4.\n'},
    {'role': 'user', 'content': 'And 3+3? <|im_end|> <s> 😀'},
    {'role': 'assistant', 'reasoning_content': '\nthree and three\n', 'content': '  6'},
]
TOOL_TURNS = [
    {'role': 'user', 'name': 'ann', 'content': 'Tide at Łódź?'},
    {'role': 'assistant', 'content': '', 'tool_calls': [CALL]},
    {'role': 'tool', 'tool_call_id': 'c1', 'content': '{"height": 1.5}'},
    {'role': 'tool', 'tool_call_id': 'c2', 'content': 'none'},
    {'role': 'assistant', 'content': '1.5 m'},
]
WRONG_ORDER = [{'role': 'assistant', 'content': 'me first'}, {'role': 'user', 'content': 'no'}]

SMOLLM2_CONVERSATIONS = [
    {'messages': HELLO, 'addGenerationPrompt': True},
    {'messages': TURNS, 'addGenerationPrompt': True},
    {'messages': [m for m in THINKING if 'reasoning_content' not in m], 'addGenerationPrompt': False},
]

TEMPLATES = {'chatml': CHATML, 'llama3': LLAMA3, 'qwen3': QWEN3, 'gemma3': GEMMA3, 'mistral': MISTRAL, 'corners': CORNERS}
SPECIAL = {'bos_token': '<s>', 'eos_token': '</s>', 'unk_token': '<unk>', 'pad_token': '<pad>'}

CONVERSATIONS = [
    {'messages': HELLO, 'addGenerationPrompt': True},
    {'messages': TURNS, 'addGenerationPrompt': True},
    {'messages': THINKING, 'addGenerationPrompt': False},
    {'messages': THINKING[:3], 'addGenerationPrompt': True, 'kwargs': {'enable_thinking': False, 'date_string': '1 Jan 2020'}},
    {'messages': TOOL_TURNS, 'addGenerationPrompt': True, 'tools': TOOLS},
    {'messages': TURNS[:3], 'addGenerationPrompt': False, 'continueFinalMessage': True},
    {'messages': [*HELLO, {'role': 'assistant', 'content': 'Well, '}], 'addGenerationPrompt': False, 'continueFinalMessage': True},
    {'messages': WRONG_ORDER, 'addGenerationPrompt': True},
]


def goldens(now: datetime) -> dict:
    """Every template with every conversation: the text, or null where transformers refuses."""
    cases = []
    for name, template in TEMPLATES.items():
        for index, conversation in enumerate(CONVERSATIONS):
            cases.append({'template': name, 'conversation': index, 'text': render(template, conversation, now)})
    return {
        'templates': TEMPLATES, 'special': SPECIAL, 'localTime': now.isoformat(), 'conversations': CONVERSATIONS, 'cases': cases,
    }


def render(template: str, conversation: dict, now: datetime) -> str | None:
    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return now

    with mock.patch.object(chat_template_utils, 'datetime', Clock):
        try:
            texts, _ = chat_template_utils.render_jinja_template(
                conversations=[conversation['messages']],
                tools=conversation.get('tools'),
                documents=None,
                chat_template=template,
                add_generation_prompt=conversation['addGenerationPrompt'],
                continue_final_message=conversation.get('continueFinalMessage', False),
                **{**SPECIAL, **conversation.get('kwargs', {})},
            )
        except Exception as error:  # whatever the template raises is a refusal
            print(f'refused: {type(error).__name__}: {str(error)[:100]}')
            return None
    return texts[0]
