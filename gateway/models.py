"""The ads DB's tables as SQLAlchemy models: SQLite in the embedded set, MySQL in the real stack.

Money is in integer micros with a currency, times are UTC. Nothing enforces references: rows arrive in any order, and an
orphan waits for its parent. Everything that a person would not care to spell out has a server default.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import BigInteger, DateTime, Integer, String, Text
from sqlalchemy.dialects import mysql
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

# SQLite makes only an INTEGER PRIMARY KEY the row id; its INTEGER has 64 bits like MySQL's BIGINT.
BIG_INT = BigInteger().with_variant(Integer, "sqlite")
LONG_TEXT = Text().with_variant(mysql.MEDIUMTEXT(), "mysql", "mariadb")
TIME = DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")
NAME, CODE, URL = String(255), String(32), String(2048)
# Keys differ when their bytes do: MySQL's usual collations would take "aB" and "Ab", or "ss" and "ß", for one row.
KEY = String(64).with_variant(mysql.VARCHAR(64, charset="utf8mb4", collation="utf8mb4_bin"), "mysql", "mariadb")


class Base(DeclarativeBase):
    """Metadata of the ads DB."""

    __table_args__ = {"mysql_charset": "utf8mb4", "mysql_engine": "InnoDB"}


class Advertiser(Base):
    """Who pays."""

    __tablename__ = "advertisers"
    id: Mapped[int] = mapped_column(BIG_INT, primary_key=True)
    name: Mapped[str] = mapped_column(NAME, server_default="")
    status: Mapped[str] = mapped_column(CODE, server_default="ACTIVE")
    billing_status: Mapped[str] = mapped_column(CODE, server_default="OK")
    country: Mapped[str | None] = mapped_column(CODE)
    currency: Mapped[str] = mapped_column(CODE, server_default="USD")


class Campaign(Base):
    """What is advertised for, and when."""

    __tablename__ = "campaigns"
    id: Mapped[int] = mapped_column(BIG_INT, primary_key=True)
    advertiser_id: Mapped[int] = mapped_column(BIG_INT, index=True)
    name: Mapped[str] = mapped_column(NAME, server_default="")
    objective: Mapped[str] = mapped_column(CODE, server_default="CONVERSIONS")
    status: Mapped[str] = mapped_column(CODE, server_default="ACTIVE")
    starts_at: Mapped[datetime | None] = mapped_column(TIME)
    ends_at: Mapped[datetime | None] = mapped_column(TIME)


class Budget(Base):
    """What a campaign may spend and has spent; lifetime 0 means no lifetime limit."""

    __tablename__ = "budgets"
    campaign_id: Mapped[int] = mapped_column(BIG_INT, primary_key=True, autoincrement=False)
    daily_micros: Mapped[int] = mapped_column(BIG_INT)
    lifetime_micros: Mapped[int] = mapped_column(BIG_INT, server_default="0")
    spent_today_micros: Mapped[int] = mapped_column(BIG_INT, server_default="0")
    spent_total_micros: Mapped[int] = mapped_column(BIG_INT, server_default="0")
    currency: Mapped[str] = mapped_column(CODE, server_default="USD")


class AdGroup(Base):
    """One bid and one targeting for a group of ads."""

    __tablename__ = "ad_groups"
    id: Mapped[int] = mapped_column(BIG_INT, primary_key=True)
    campaign_id: Mapped[int] = mapped_column(BIG_INT, index=True)
    name: Mapped[str] = mapped_column(NAME, server_default="")
    status: Mapped[str] = mapped_column(CODE, server_default="ACTIVE")
    bid_micros: Mapped[int | None] = mapped_column(BIG_INT)
    starts_at: Mapped[datetime | None] = mapped_column(TIME)
    ends_at: Mapped[datetime | None] = mapped_column(TIME)


class TargetingSpec(Base):
    """Whom an ad group is for: JSON text, parsed and judged by the targeting handler."""

    __tablename__ = "targeting_specs"
    ad_group_id: Mapped[int] = mapped_column(BIG_INT, primary_key=True, autoincrement=False)
    spec: Mapped[str] = mapped_column(LONG_TEXT)


class Ad(Base):
    """One creative in one ad group."""

    __tablename__ = "ads"
    id: Mapped[int] = mapped_column(BIG_INT, primary_key=True)
    ad_group_id: Mapped[int] = mapped_column(BIG_INT, index=True)
    pin_id: Mapped[str | None] = mapped_column(KEY, index=True)
    name: Mapped[str] = mapped_column(NAME, server_default="")
    status: Mapped[str] = mapped_column(CODE, server_default="ACTIVE")
    review_status: Mapped[str] = mapped_column(CODE, server_default="APPROVED")


class Pin(Base):
    """The creative: a product with its text and prices."""

    __tablename__ = "pins"
    id: Mapped[str] = mapped_column(KEY, primary_key=True)
    title: Mapped[str | None] = mapped_column(String(1024))
    description: Mapped[str | None] = mapped_column(LONG_TEXT)
    link: Mapped[str | None] = mapped_column(URL)
    brand: Mapped[str | None] = mapped_column(NAME)
    category_path: Mapped[str | None] = mapped_column(String(1024))
    status: Mapped[str] = mapped_column(CODE, server_default="ACTIVE")
    price_micros: Mapped[int | None] = mapped_column(BIG_INT)
    list_price_micros: Mapped[int | None] = mapped_column(BIG_INT)
    currency: Mapped[str | None] = mapped_column(CODE)
    image_id: Mapped[str | None] = mapped_column(KEY, index=True)


class Image(Base):
    """A picture of a creative."""

    __tablename__ = "images"
    id: Mapped[str] = mapped_column(KEY, primary_key=True)
    url: Mapped[str] = mapped_column(URL)
    width: Mapped[int | None] = mapped_column(Integer)
    height: Mapped[int | None] = mapped_column(Integer)
    status: Mapped[str] = mapped_column(CODE, server_default="ACTIVE")
