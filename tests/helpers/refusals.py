"""What a command does with bad input: one sentence, exit code 2, nothing written."""


def assert_refused(outcome, output, *fragments):
    assert outcome.exit_code == 2, outcome.output
    message = " ".join(outcome.output.split())
    for fragment in fragments:
        assert fragment in message
    assert "Traceback" not in message
    assert message.count("Error") == 1
    assert not output.exists()


def assert_sentence(caught, *fragments):
    """The same of an error raised in Python."""
    message = str(caught.value)
    assert "\n" not in message
    for fragment in fragments:
        assert fragment in message
