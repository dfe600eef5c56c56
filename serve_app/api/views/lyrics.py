"""The answer about when lyrics are sung."""

from pydantic import BaseModel, Field


class WordView(BaseModel):
    """A word of a line."""

    text: str = Field(description="The word, with the punctuation beside it.", examples=["morning"])
    start: float = Field(description="When it begins, in seconds from the start of the song.", examples=[3.2])
    end: float = Field(description="When it ends.", examples=[3.84])


class LineView(BaseModel):
    """A line of the lyrics."""

    text: str = Field(
        description="The line, without section tags such as [verse].", examples=["Soft notes in the morning light"]
    )
    start: float = Field(description="When its first word begins.", examples=[2.4])
    end: float = Field(description="When its last word ends.", examples=[5.12])
    words: list[WordView] = Field(description="Its words. In Chinese and Japanese, its characters.")


class LyricsView(BaseModel):
    """When the lyrics of a song are sung, as the model planned them; a word that was not sung has a time, too."""

    lines: list[LineView] = Field(description="The lines in order, without those that consist of section tags.")
