"""SDKs of services, as their users write it, each under its environment variables.

    sdks.py NAME          asks the service, and prints what came back
"""

import asyncio
import os
import sys
import threading

CA = os.environ["SSL_CERT_FILE"]


def gemini():
    from google import genai

    client = genai.Client()
    ask = dict(model="gemini-2.5-flash", contents="Hello")
    print(client.models.generate_content(**ask).text)
    print("".join(part.text or "" for part in client.models.generate_content_stream(**ask)))


def gemini_live():
    from google import genai

    async def talk():
        live = genai.Client().aio.live
        async with live.connect(model="gemini-live", config={"response_modalities": ["TEXT"]}) as session:
            turn = {"role": "user", "parts": [{"text": "Hello"}]}
            await session.send_client_content(turns=turn, turn_complete=True)
            async for message in session.receive():
                if message.text:
                    print(message.text)

    asyncio.run(talk())


def openai():
    from openai import OpenAI

    client = OpenAI(max_retries=0)
    print(client.responses.create(model="gpt-4o", input="Hello").output_text)
    with client.responses.stream(model="gpt-4o", input="Hello") as stream:
        print(stream.get_final_response().output_text)
    file = client.files.create(file=("coat.txt", b"x" * 1_000_000), purpose="assistants")
    print(file.filename, file.bytes)


def slack():
    from slack_sdk import WebClient

    answer = WebClient(token=os.environ["SLACK_BOT_TOKEN"]).chat_postMessage(channel="C1", text="Hello")
    print(answer["message"]["text"])


def slack_socket():
    from slack_sdk.socket_mode import SocketModeClient
    from slack_sdk.socket_mode.response import SocketModeResponse

    heard = threading.Event()

    def listen(client, request):
        client.send_socket_mode_response(SocketModeResponse(envelope_id=request.envelope_id))
        print(request.payload["event"]["text"])
        heard.set()

    client = SocketModeClient(app_token=os.environ["SLACK_APP_TOKEN"])
    client.socket_mode_request_listeners.append(listen)
    client.connect()
    assert heard.wait(20)
    client.close()


def stripe():
    import stripe

    # It has CAs of its own.
    stripe.ca_bundle_path = CA
    client = stripe.StripeClient(os.environ["STRIPE_API_KEY"])
    print(client.v1.customers.create({"name": "Coat & Hat"}).id)
    print([customer.id for customer in client.v1.customers.list().auto_paging_iter()])


def twilio():
    from twilio.rest import Client

    client = Client("AC00000000000000000000000000000000", os.environ["TWILIO_AUTH_TOKEN"])
    print(client.messages.create(to="+15005550006", from_="+15005550001", body="Hello").sid)


def github():
    from github import Auth, Github

    client = Github(auth=Auth.Token(os.environ["GITHUB_TOKEN"]), retry=None)
    print(client.get_user().login)
    print(client.get_repo("lab/coat").create_issue("A sleeve is missing").number)


def kubernetes():
    from kubernetes import client, watch

    config = client.Configuration(host="https://kube.example")
    config.api_key = {"authorization": os.environ["KUBE_TOKEN"]}
    config.api_key_prefix = {"authorization": "Bearer"}
    config.ssl_ca_cert = CA
    api = client.CoreV1Api(client.ApiClient(config))
    print([pod.metadata.name for pod in api.list_namespaced_pod("default").items])
    for event in watch.Watch().stream(api.list_namespaced_pod, "default", timeout_seconds=5):
        print(event["type"], event["object"].metadata.name)


{
    work.__name__: work
    for work in (gemini, gemini_live, openai, slack, slack_socket, stripe, twilio, github, kubernetes)
}[sys.argv[1]]()
